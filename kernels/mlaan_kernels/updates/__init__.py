"""What all updates share: their arguments, their checks and the way into csrc. No operator of its own."""
