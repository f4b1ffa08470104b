#!/bin/sh
# Runs a command with secrets from files: NAME_FILE=/run/secrets/name becomes NAME with the content of the file.
set -eu
umask 077  # databases, judgements and logs are for the account of the container
for name in $(env | sed -n 's/^\([A-Z_]*\)_FILE=\/run\/secrets\/.*/\1/p'); do
    eval "file=\$${name}_FILE"
    [ -r "$file" ] || { echo "secrets.sh: $file of ${name}_FILE cannot be read: mount the secret there" >&2; exit 1; }
    export "$name=$(cat "$file")"
    unset "${name}_FILE"
done
exec "$@"
