"""What is learnt between and after the tasks: methods, their memory and their presets."""
