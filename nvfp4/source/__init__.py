"""Make a checkpoint one to convert: layers decoded or kept, LoRAs given their places."""
