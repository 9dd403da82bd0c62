"""Jobs: many documents from a file of rows, made once each whatever happens meanwhile."""
