"""What is seen, what follows from it, and what is said about it: pure functions without a clock."""
