"""The offline commands, a file each: its options and its run together. torch is imported when a command runs."""
