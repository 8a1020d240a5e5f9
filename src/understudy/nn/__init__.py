"""Networks: action distributions and their heads, encoders, memories, normalisers, and the policy built from them."""
