"""How smooth a loss is: measured along training, on landscapes, at kinks."""
