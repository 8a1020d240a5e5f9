"""What several parts are built from; a part imports these files and no other part."""
