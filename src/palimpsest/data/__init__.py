"""Users' pictures, with what is known of them, from folders, parquet tables and arrays; forget requests; lists."""
