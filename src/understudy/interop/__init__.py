"""What speaks the words of other libraries."""
