"""The suite `gpu`: what one accelerator gives, and how much of it a training step and a whole scan take."""
