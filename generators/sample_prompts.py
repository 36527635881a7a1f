"""Prompts for the pictures that emoji models show while they train and on their cards."""

PROMPTS = (
    "a red apple, noto emoji style",
    "a cat face, twemoji emoji style",
    "a slice of pizza, fluent 3d emoji style",
    "a turtle, fluent high contrast style",
    "a smiling face with sunglasses, noto emoji style",
    "the flag of Japan, twemoji emoji style",
    "a deciduous tree, fluent flat emoji style",
    "a red heart, blob emoji style",
    "a taxi, fluent flat emoji style",
    "a soccer ball, emojitwo style",
    "a rocket, fluent 3d emoji style",
    "a woman with red hair, blob emoji style",
    "a dog, drawn as a black silhouette icon",
    "a hot beverage, fxemoji style",
    "a banana, streamline emoji style",
    "a smiling face with heart-eyes, twemoji emoji style",
)
