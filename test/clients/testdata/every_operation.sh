#!/usr/bin/env bash
# Every operation of localkms by the aws CLI. The KMS is at $URL, the caller and
# its Region are in the environment. What this CLI is too old for it prints as
# "LACKS <command>" and goes on.
set -euo pipefail
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT

# kms QUERY COMMAND [ARGUMENT...]: what the query finds in the answer.
kms() {
  local query=$1
  shift
  aws --endpoint-url "$URL" --output text --query "$query" kms "$@"
}

# newer QUERY COMMAND [ARGUMENT...]: the same, of what older CLIs do not know.
newer() {
  local out
  if out=$(kms "$@" 2>&1); then
    printf '%s\n' "$out"
  elif [[ $out == *"nvalid choice"* || $out == *"Unknown options"* ]]; then
    echo "LACKS $2" >&3
  else
    echo "$out" >&2
    return 1
  fi
}
exec 3>&1

# expect WANT GOT WHAT
expect() {
  [[ $1 == "$2" ]] || { echo "$3: got $2, want $1" >&2; exit 1; }
}

# refused CODE COMMAND...: the command fails with this code.
refused() {
  local code=$1 out
  shift
  if out=$("$@" 2>&1); then
    echo "$*: succeeded, want $code" >&2
    exit 1
  fi
  [[ $out == *"($code)"* ]] || { echo "$*: $out, want $code" >&2; exit 1; }
}

printf 'a secret' >plain
key=$(kms KeyMetadata.Arn create-key --description papers --tags TagKey=team,TagValue=a)
other=$(kms KeyMetadata.KeyId create-key)
mac=$(kms KeyMetadata.KeyId create-key --key-spec HMAC_256 --key-usage GENERATE_VERIFY_MAC)
expect 3 "$(kms 'length(Keys)' list-keys)" list-keys
context=tenant=a,object=1

properties() {
  kms @ update-key-description --key-id "$key" --description 'more papers'
  expect 'more papers' "$(kms KeyMetadata.Description describe-key --key-id "$key")" update-key-description

  kms Policy get-key-policy --key-id "$key" --policy-name default >policy.json
  kms @ put-key-policy --key-id "$key" --policy-name default --policy file://policy.json
  expect default "$(kms 'PolicyNames[0]' list-key-policies --key-id "$key")" list-key-policies

  kms @ tag-resource --key-id "$key" --tags TagKey=env,TagValue=test TagKey=team,TagValue=b
  kms @ untag-resource --key-id "$key" --tag-keys env
  expect 'team b' "$(kms 'Tags[].[TagKey,TagValue]' list-resource-tags --key-id "$key" | tr '\t' ' ')" list-resource-tags
}

secrets() {
  kms @ disable-key --key-id "$other"
  refused DisabledException kms @ encrypt --key-id "$other" --plaintext fileb://plain
  kms @ enable-key --key-id "$other"

  kms @ create-alias --alias-name alias/papers --target-key-id "$other"
  kms @ update-alias --alias-name alias/papers --target-key-id "$key"
  expect alias/papers "$(kms 'Aliases[0].AliasName' list-aliases --key-id "$key")" list-aliases
  kms CiphertextBlob encrypt --key-id alias/papers --plaintext fileb://plain --encryption-context "$context" | base64 -d >blob
  expect 'a secret' "$(kms Plaintext decrypt --ciphertext-blob fileb://blob --encryption-context "$context" | base64 -d)" decrypt
  kms @ delete-alias --alias-name alias/papers
  kms CiphertextBlob re-encrypt --ciphertext-blob fileb://blob --source-encryption-context "$context" --destination-key-id "$other" | base64 -d >moved
  expect 'a secret' "$(kms Plaintext decrypt --ciphertext-blob fileb://moved | base64 -d)" re-encrypt
}

generated() {
  expect 32 "$(kms Plaintext generate-data-key --key-id "$key" --key-spec AES_256 | base64 -d | wc -c)" generate-data-key
  kms KeyId generate-data-key-without-plaintext --key-id "$key" --number-of-bytes 16
  expect ECC_NIST_P256 "$(kms KeyPairSpec generate-data-key-pair --key-id "$key" --key-pair-spec ECC_NIST_P256)" generate-data-key-pair
  kms KeyPairSpec generate-data-key-pair-without-plaintext --key-id "$key" --key-pair-spec ECC_NIST_P384
  expect 7 "$(kms Plaintext generate-random --number-of-bytes 7 | base64 -d | wc -c)" generate-random
  kms Mac generate-mac --key-id "$mac" --mac-algorithm HMAC_SHA_256 --message fileb://plain | base64 -d >tag
  expect True "$(kms MacValid verify-mac --key-id "$mac" --mac-algorithm HMAC_SHA_256 --message fileb://plain --mac fileb://tag)" verify-mac
  newer KeyLastUsage.Operation get-key-last-usage --key-id "$mac"
}

grant() {
  kms "$1" create-grant --key-id "$key" --grantee-principal "$GRANTEE" --retiring-principal "$RETIRER" --operations Decrypt DescribeKey \
    --constraints "EncryptionContextSubset={tenant=a}" --name "$2"
}

grants() {
  local id
  id=$(grant GrantId one)
  expect "$id" "$(kms 'Grants[0].GrantId' list-grants --key-id "$key")" list-grants
  expect "$id" "$(kms 'Grants[0].GrantId' list-retirable-grants --retiring-principal "$RETIRER")" list-retirable-grants
  kms @ revoke-grant --key-id "$key" --grant-id "$id"
  kms @ retire-grant --grant-token "$(grant GrantToken two)"
}

rotation() {
  kms @ enable-key-rotation --key-id "$key"
  expect True "$(kms KeyRotationEnabled get-key-rotation-status --key-id "$key")" get-key-rotation-status
  newer @ enable-key-rotation --key-id "$key" --rotation-period-in-days 90
  kms @ disable-key-rotation --key-id "$key"
  newer KeyId rotate-key-on-demand --key-id "$key"
  newer 'length(Rotations)' list-key-rotations --key-id "$key"
  case $(kms @ encrypt --key-id "$key" --plaintext fileb://plain --dry-run 2>&1) in
  *"(DryRunOperationException)"*) ;;
  *"Unknown options"*) echo "LACKS encrypt --dry-run" ;;
  *) echo "encrypt --dry-run: not refused as a dry run" >&2 && exit 1 ;;
  esac
}

deletion() {
  kms KeyState schedule-key-deletion --key-id "$key" --pending-window-in-days 7
  refused KMSInvalidStateException kms @ decrypt --ciphertext-blob fileb://blob --encryption-context "$context"
  kms KeyId cancel-key-deletion --key-id "$key"
}

# sts QUERY COMMAND [ARGUMENT...]
sts() {
  local query=$1
  shift
  aws --endpoint-url "$URL" --output text --query "$query" sts "$@"
}

sessions() {
  export AWS_ACCESS_KEY_ID=AKIAANN AWS_SECRET_ACCESS_KEY=ann
  expect arn:aws:iam::111122223333:user/ann "$(sts Arn get-caller-identity)" get-caller-identity
  refused AccessDenied sts @ assume-role --role-arn "$ROLE" --role-session-name cli
  refused AccessDeniedException kms @ list-keys
  read -r AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN < <(sts 'Credentials.[AccessKeyId,SecretAccessKey,SessionToken]' \
    assume-role --role-arn "$ROLE" --role-session-name cli --external-id tenant-4711)
  export AWS_SESSION_TOKEN
  expect arn:aws:sts::111122223333:assumed-role/app/cli "$(sts Arn get-caller-identity)" "get-caller-identity in a role"
  kms 'length(Keys)' list-keys
}

# Each call is a start of Python: what does not depend on one another runs at once.
started=()
for part in properties secrets generated grants rotation sessions; do
  "$part" &
  started+=($!)
done
for one in "${started[@]}"; do
  wait "$one"
done
deletion
