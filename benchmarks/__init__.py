"""Speed against torch: the cases, the networks, and how they are measured. `batchnorm bench` runs them."""
