"""Users' pictures: folders, parquet tables and arrays as Samples, and forget requests that split them."""
