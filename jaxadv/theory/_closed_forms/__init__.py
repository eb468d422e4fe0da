"""The linear model and the paper's toy, in closed form."""
