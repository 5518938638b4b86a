"""Files: written atomically, read within limits; models as folders, and on the Hugging Face hub."""
