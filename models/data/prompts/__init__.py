"""Data for models that write text: prompts with their answers, from names and files to four splits."""
