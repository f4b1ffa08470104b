#!/bin/sh
# Creates missing secrets in deploy/secrets/, one file each. Only the owner can enter the directory; the files are
# world-readable because containers, which see only their own secrets, run as another user.
set -eu
directory="$(dirname "$0")/secrets"
mkdir -p "$directory"
chmod 700 "$directory"
random() { od -An -N "$1" -tx1 /dev/urandom | tr -d ' \n'; }
make() { [ -s "$directory/$1" ] || { printf '%s' "$2" >"$directory/$1.partial" && chmod 444 "$directory/$1.partial" && mv "$directory/$1.partial" "$directory/$1"; }; }
for name in postgres_password prefect_database_password mlflow_database_password label_studio_database_password \
    mlflow_password mlflow_secret_key label_studio_password label_studio_secret_key minio_password; do
    make "$name" "$(random 24)"
done
make prefect_auth "rlhf:$(random 24)"
make label_studio_token "$(random 20)"
make minio_user rlhf
echo "secrets are in $directory"
