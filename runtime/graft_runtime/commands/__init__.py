"""What the console script can do, a module a command."""
