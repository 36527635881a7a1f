"""The subcommands `star eval`, `star bench` and `star compare`."""
