"""Operations that the models share."""
