"""What a surface would use instead of the foundation model's experts, predicted and judged under the same laws."""
