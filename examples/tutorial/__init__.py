"""The steps of docs/tutorial.md, from ten lines of NumPy to the trainer."""
