"""A pod's network: joined, left, and what CNI plugins have not yet taken away."""
