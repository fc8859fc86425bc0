"""What tests share: makers of models and files, broken and hostile ones, and of the goldens."""
