"""What a batch norm computes, on any device."""
