"""The linear model and the paper's toy, where everything is known in closed form."""
