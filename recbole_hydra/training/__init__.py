"""One run: its data and model made, trained, and tested."""
