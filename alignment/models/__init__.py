"""Language and reward models: loading, saving, tokenizing, generating, scoring."""
