"""What users read: tables, sentences, documents. Nothing here computes a result."""
