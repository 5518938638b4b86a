"""Storage: atomic writing, reading with size limits, models in folders and on the Hugging Face hub."""
