"""The web page of `star demo`: studio.py draws and keeps files, page.py shows it (gradio), server.py serves it."""
