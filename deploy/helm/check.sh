#!/usr/bin/env bash
# Checks the chart without a cluster: what it renders is valid Kubernetes, its
# configuration is one that the broker takes, and bad values are refused in words.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
helm=${HELM:?the path of helm; make chart sets it}
validate=${KUBECTL_VALIDATE:?the path of kubectl-validate; make chart sets it}
chart=deploy/helm/keybroker
values=$chart/ci/values.yaml
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$helm" lint --strict --quiet "$chart" --values "$values"

render() { "$helm" template check "$chart" --values "$values" --namespace check "$@"; }

mkdir "$work/plain" "$work/full"
render >"$work/plain/all.yaml"
render --set database.existingSecret= --set database.url=postgres://u:p@db/keybroker --set replicas=1 \
  --set 'env[0].name=OTEL_EXPORTER_OTLP_ENDPOINT' --set 'env[0].value=http://otel:4317' \
  --set 'serviceAccount.annotations.eks\.amazonaws\.com/role-arn=arn:aws:iam::111122223333:role/keybroker' \
  --set 'nodeSelector.disk=ssd' --set 'podLabels.team=keys' >"$work/full/all.yaml"
# Whoever opens the database, the migration too, has the CA and the environment.
for kind in existingConfigMap existingSecret; do
  render --set "database.ca.$kind=rds-ca" --set database.ca.key=bundle.pem \
    --set 'env[0].name=CHECKED' --set 'env[0].value=check' >"$work/full/$kind.yaml"
  for want in '[nN]ame: rds-ca' 'key: bundle.pem, path: ca.pem' 'mountPath: /etc/keybroker/database-ca,' 'name: CHECKED'; do
    [[ $(grep -c -- "$want" "$work/full/$kind.yaml") == 2 ]] ||
      { echo "with database.ca.$kind, '$want' is not in both the Deployment and the Job" >&2; exit 1; }
  done
done
for kind in Deployment Job PodDisruptionBudget ServiceAccount; do
  grep -q "^kind: $kind\$" "$work/plain/all.yaml" || { echo "the chart renders no $kind" >&2; exit 1; }
done
if grep -E '^kind: (Service|Ingress)$' "$work"/*/all.yaml; then
  echo "the chart opens the broker to the network, and callers are not authenticated yet" >&2
  exit 1
fi
if grep -l 'u:p@db' <(render --set database.existingSecret= --set database.url=postgres://u:p@db/keybroker \
  --show-only templates/deployment.yaml --show-only templates/migration.yaml); then
  echo "the database's password is outside the Secret" >&2
  exit 1
fi
"$validate" --version 1.30 "$work/plain" "$work/full" >"$work/validate.log" 2>&1 || { cat "$work/validate.log" >&2; exit 1; }

# configured ARGS...: the broker takes the configuration that the chart renders, the
# same for the Deployment and the Job.
configured() {
  local part
  for part in migration deployment; do
    "$helm" template check "$chart" --namespace check --show-only "templates/$part.yaml" "$@" |
      sed -n '/^        keybroker\/config: |$/,/^          }$/p' | sed '1d; s/^          //' >"$work/$part.json"
  done
  cmp "$work/migration.json" "$work/deployment.json"
  bin/broker check-config --config "$work/deployment.json" >"$work/in-force.json"
}
configured --values "$values"
# The values that docs/deploy.md gives to copy.
for name in values env; do
  sed -n "/^<!-- $name.yaml -->\$/,/^\`\`\`\$/p" docs/deploy.md | sed '1,2d; $d' >"$work/$name.yaml"
done
configured --values "$work/values.yaml"
[[ $(render --values "$work/env.yaml" --show-only templates/deployment.yaml | grep -c secretKeyRef) == 2 ]] ||
  { echo "docs/deploy.md: the pods do not have the AWS credentials" >&2; exit 1; }
grep -q '"grantee_accounts": \[$' "$work/in-force.json" || { echo "docs/deploy.md: no service could get a grant" >&2; exit 1; }

# refused WORDS ARGS...: the chart does not render, and says why.
refused() {
  local words=$1
  shift
  if render "$@" >/dev/null 2>"$work/refusal"; then
    echo "rendered although it must not: $*" >&2
    exit 1
  fi
  grep -qF -- "$words" "$work/refusal" || { echo "$*: the refusal lacks '$words':" >&2; cat "$work/refusal" >&2; exit 1; }
}
refused "config.deployment: is required" --set config.deployment=
refused "exclude each other" --set database.url=postgres://db/keybroker
refused "set existingSecret" --set database.existingSecret=
refused "database.ca" --set database.ca.existingConfigMap=a --set database.ca.existingSecret=b
refused "sslrootcert=" --set database.ca.existingConfigMap=a --set database.existingSecret= --set database.url=postgres://db/keybroker
refused "replica" --set replica=3
refused "listen" --set config.listen=0.0.0.0:8443
refused "replicas" --set replicas=0
# What the cluster would refuse halfway through an upgrade: YAML's numbers.
refused "podAnnotations" --set podAnnotations.revision=2
refused "podLabels" --set podLabels.revision=2
refused "nodeSelector" --set nodeSelector.rack=2
refused "annotations" --set serviceAccount.annotations.account=111122223333
refused "env" --set 'env[0].name=A' --set 'env[0].value=1'
refused "grantee_accounts" --set 'config.grantee_accounts={222233334444}'
echo "the chart is good: $(grep -c '^kind:' "$work/plain/all.yaml") resources"
