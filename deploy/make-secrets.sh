#!/bin/sh
# Makes the secrets that are missing in deploy/secrets/, one file each. The directory is its owner's alone; the files
# can be read by all because containers, which see only their own, run as another user.
set -eu
place="$(dirname "$0")/secrets"
mkdir -p "$place"
chmod 700 "$place"
random() { od -An -N "$1" -tx1 /dev/urandom | tr -d ' \n'; }
make() { [ -s "$place/$1" ] || { printf '%s' "$2" >"$place/$1.partial" && chmod 444 "$place/$1.partial" && mv "$place/$1.partial" "$place/$1"; }; }
for name in postgres_password prefect_database_password mlflow_database_password label_studio_database_password \
    mlflow_password mlflow_secret_key label_studio_password label_studio_secret_key minio_password; do
    make "$name" "$(random 24)"
done
make prefect_auth "rlhf:$(random 24)"
make label_studio_token "$(random 20)"
make minio_user rlhf
echo "secrets are in $place"
