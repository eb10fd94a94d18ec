"""A trained model behind HTTP: events in, recommendations out."""
