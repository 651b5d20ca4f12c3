"""Small pure functions: similarities and cameras."""
