"""Arrays of any library: their kinds, their places, and what checks say of them."""
