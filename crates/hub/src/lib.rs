//! The Hugging Face hub: models and data files fetched into Python's cache layout, results pushed.
