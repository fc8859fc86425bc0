"""Read files of the Hugging Face Hub as others are read: `hf://owner/repo[@revision][/path]`."""
