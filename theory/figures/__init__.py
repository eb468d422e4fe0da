"""The paper's toy figures, from closed forms."""
