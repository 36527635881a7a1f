"""The subcommands `star eval`, `star bench`, `star compare` and `star rank`."""
