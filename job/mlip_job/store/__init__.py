"""Object stores: a directory or an S3 bucket, with create-only and compare-and-swap writes."""
