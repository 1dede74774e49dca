"""Any library that follows the Array API standard: closed forms by its own operations."""
