"""Where a vocabulary comes from: trained on the documents, or brought, checked and extended."""
