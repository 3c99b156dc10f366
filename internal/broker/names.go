package broker

import (
	"fmt"
	"regexp"
	"strings"
)

// The identifiers. An ID is the caller's choice and unique in its parent; a
// UID is minted here and never used twice, also after a delete (I14).
type (
	// DomainID is the last part of domains/{d}.
	DomainID string
	// DomainUID is 26 random characters; it is the value in the reserved pair.
	DomainUID string
	// GrantID is the last part of domains/{d}/grants/{g}.
	GrantID string
	// GrantUID is 26 characters, time-ordered; it stands in KMS grant Names.
	GrantUID string
	// DataKeyID is the last part of domains/{d}/dataKeys/{k}.
	DataKeyID string
	// DataKeyUID is 26 characters, time-ordered.
	DataKeyUID string
	// JobID is the last part of domains/{d}/reencryptionJobs/{j}, minted.
	JobID string
	// Epoch counts the keys that a domain has had: 0 is none, the first key is 1.
	Epoch int64
	// KeyARN is a full KMS key ARN (never an alias).
	KeyARN string
)

// Name gives the resource name.
func (d DomainID) Name() string { return "domains/" + string(d) }

// GrantName gives domains/{d}/grants/{g}.
func GrantName(d DomainID, g GrantID) string { return d.Name() + "/grants/" + string(g) }

// DataKeyName gives domains/{d}/dataKeys/{k}.
func DataKeyName(d DomainID, k DataKeyID) string { return d.Name() + "/dataKeys/" + string(k) }

// JobName gives domains/{d}/reencryptionJobs/{j}.
func JobName(d DomainID, j JobID) string { return d.Name() + "/reencryptionJobs/" + string(j) }

// FailureName gives domains/{d}/reencryptionJobs/{j}/failures/{k}.
func FailureName(d DomainID, j JobID, k DataKeyID) string {
	return JobName(d, j) + "/failures/" + string(k)
}

var (
	domainIDPattern   = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`)
	grantIDPattern    = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	dataKeyIDPattern  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
	keyARNPattern     = regexp.MustCompile(`^arn:(aws|aws-cn|aws-us-gov):kms:([a-z0-9-]{1,32}):([0-9]{12}):(key|alias)/([A-Za-z0-9:/_-]{1,256})$`)
	roleARNPattern    = regexp.MustCompile(`^arn:(aws|aws-cn|aws-us-gov):iam::([0-9]{12}):role/([\x21-\x7e]{1,512}/)?([A-Za-z0-9+=,.@_-]{1,64})$`)
	accountPattern    = regexp.MustCompile(`^[0-9]{12}$`)
	regionPattern     = regexp.MustCompile(`^[a-z]{2}(-[a-z]+)+-[0-9]$`)
	deploymentPattern = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)
)

// ParseDomainName reads domains/{d}.
func ParseDomainName(field, name string) (DomainID, error) {
	parts, err := splitName(field, name, "domains")
	if err != nil {
		return "", err
	}
	return DomainID(parts[0]), nil
}

// ParseGrantName reads domains/{d}/grants/{g}.
func ParseGrantName(field, name string) (DomainID, GrantID, error) {
	parts, err := splitName(field, name, "domains", "grants")
	if err != nil {
		return "", "", err
	}
	return DomainID(parts[0]), GrantID(parts[1]), nil
}

// ParseDataKeyName reads domains/{d}/dataKeys/{k}.
func ParseDataKeyName(field, name string) (DomainID, DataKeyID, error) {
	parts, err := splitName(field, name, "domains", "dataKeys")
	if err != nil {
		return "", "", err
	}
	return DomainID(parts[0]), DataKeyID(parts[1]), nil
}

// ParseJobName reads domains/{d}/reencryptionJobs/{j}.
func ParseJobName(field, name string) (DomainID, JobID, error) {
	parts, err := splitName(field, name, "domains", "reencryptionJobs")
	if err != nil {
		return "", "", err
	}
	return DomainID(parts[0]), JobID(parts[1]), nil
}

// ParseReportName reads domains/{d}/reencryptionJobs/{j}/retirementReport.
func ParseReportName(field, name string) (DomainID, JobID, error) {
	job, ok := strings.CutSuffix(name, "/retirementReport")
	if !ok {
		return "", "", nameError(field, "domains/{domain}/reencryptionJobs/{job}/retirementReport")
	}
	return ParseJobName(field, job)
}

// ParseFailureName reads domains/{d}/reencryptionJobs/{j}/failures/{k}.
func ParseFailureName(field, name string) (DomainID, JobID, DataKeyID, error) {
	parts, err := splitName(field, name, "domains", "reencryptionJobs", "failures")
	if err != nil {
		return "", "", "", err
	}
	return DomainID(parts[0]), JobID(parts[1]), DataKeyID(parts[2]), nil
}

// splitName takes a name apart into the ids after each collection. Every id is
// checked against its collection's pattern, so a name that parses is the only
// spelling of that resource (T17).
func splitName(field, name string, collections ...string) ([]string, error) {
	parts := strings.Split(name, "/")
	want := ""
	for _, c := range collections {
		want += fmt.Sprintf("/%s/{%s}", c, strings.TrimSuffix(c, "s"))
	}
	want = want[1:]
	if len(parts) != 2*len(collections) {
		return nil, nameError(field, want)
	}
	ids := make([]string, len(collections))
	for i, c := range collections {
		id := parts[2*i+1]
		pattern := grantIDPattern // and jobs', which are minted
		switch c {
		case "domains":
			pattern = domainIDPattern
		case "dataKeys", "failures":
			pattern = dataKeyIDPattern
		}
		if parts[2*i] != c || !pattern.MatchString(id) {
			return nil, nameError(field, want)
		}
		ids[i] = id
	}
	return ids, nil
}

func nameError(field, want string) *Error {
	return invalidField(ReasonNameInvalid, field, "must have the form %s", want)
}

// An ARN of KMS, taken apart. Alias is set for alias ARNs.
type keyARNParts struct {
	Partition, Region, Account, ID string
	Alias                          bool
}

func parseKeyARN(s string) (keyARNParts, bool) {
	m := keyARNPattern.FindStringSubmatch(s)
	if m == nil {
		return keyARNParts{}, false
	}
	return keyARNParts{Partition: m[1], Region: m[2], Account: m[3], ID: m[5], Alias: m[4] == "alias"}, true
}

// Account gives the account that owns the key, or "" for what is no key ARN.
func (k KeyARN) Account() string {
	p, _ := parseKeyARN(string(k))
	return p.Account
}

// Region gives the key's Region, or "" for what is no key ARN.
func (k KeyARN) Region() string {
	p, _ := parseKeyARN(string(k))
	return p.Region
}

// partitionOf gives the first part after arn: of any ARN.
func partitionOf(arn string) string {
	parts := strings.SplitN(arn, ":", 3)
	if len(parts) < 3 {
		return ""
	}
	return parts[1]
}

// RoleAccount gives the account of an IAM role's ARN, or "".
func RoleAccount(arn string) string {
	m := roleARNPattern.FindStringSubmatch(arn)
	if m == nil {
		return ""
	}
	return m[2]
}
