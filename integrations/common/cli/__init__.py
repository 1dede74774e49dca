"""Command lines: configuration files, exit statuses, quiet libraries, memory that runs out."""
