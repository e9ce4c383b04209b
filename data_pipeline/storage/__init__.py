"""Files of a database: written whole, described by checksums, read where they lie."""
