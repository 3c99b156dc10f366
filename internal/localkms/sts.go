package localkms

import (
	"encoding/xml"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// AWS STS on the same endpoint: the AWS Query protocol, forms in and XML out, as far
// as it takes to act in a role.

const (
	formType   = "application/x-www-form-urlencoded"
	stsVersion = "2011-06-15"
	stsSpace   = "https://sts.amazonaws.com/doc/2011-06-15/"
)

// Limits of AssumeRole (AWS STS API Reference, AssumeRole, Request Parameters).
const (
	minRoleArn         = 20 // characters
	maxRoleArn         = 2048
	minSessionName     = 2
	maxSessionName     = 64
	minExternalID      = 2
	maxExternalID      = 1224
	maxSessionPolicy   = 2048 // characters
	minSessionSeconds  = 900
	maxSessionSeconds  = 43_200
	defaultSession     = time.Hour
	maxChainedSession  = time.Hour // of a role that is assumed by a role
	sessionNamePattern = `[\w+=,.@-]*`
	externalIDPattern  = `[\w+=,.@:\/-]*`
)

var (
	sessionNameMatcher = regexp.MustCompile(`^[\w+=,.@-]*$`)
	externalIDMatcher  = regexp.MustCompile(`^[\w+=,.@:/-]*$`)
	roleArnMatcher     = regexp.MustCompile(`^arn:aws:iam::[0-9]{12}:role/[\w+=,.@/-]+$`)
)

// unsupportedSTS names the actions of STS (API Reference, Actions) that are not
// served here.
var unsupportedSTS = []string{
	"AssumeRoleWithSAML", "AssumeRoleWithWebIdentity", "AssumeRoot", "DecodeAuthorizationMessage", "GetAccessKeyInfo",
	"GetDelegatedAccessToken", "GetFederationToken", "GetSessionToken", "GetWebIdentityToken",
}

// unsupportedParameters are those of AssumeRole that would change what a session may
// do, or who it is.
var unsupportedParameters = []string{
	"PolicyArns", "ProvidedContexts", "SerialNumber", "SourceIdentity", "Tags", "TokenCode", "TransitiveTagKeys",
}

func isSTS(hr *http.Request) bool {
	return hr.Header.Get("X-Amz-Target") == "" && strings.HasPrefix(hr.Header.Get("Content-Type"), formType)
}

// serveSTS answers one request of the AWS Query protocol.
func (k *KMS) serveSTS(r *request, hr *http.Request) (status int, kind string, body []byte) {
	out, err := k.dispatchSTS(r, hr)
	if err == nil {
		if body, err = xml.Marshal(out); err == nil {
			return http.StatusOK, "text/xml", body
		}
	}
	f := stsFault(asFault(err))
	r.call.ErrorCode = f.code
	body, _ = xml.Marshal(stsError{ // texts always marshal
		Space: stsSpace, Type: f.party, Code: f.code, Message: f.message, RequestID: r.call.RequestID,
	})
	return f.status, "text/xml", body
}

func (k *KMS) dispatchSTS(r *request, hr *http.Request) (any, error) {
	body, err := readBody(hr)
	if err != nil {
		return nil, err
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, fault(codeSerialization, "The request body is not a form.")
	}
	action, version := form.Get("Action"), form.Get("Version")
	r.call.Operation = action
	if err := k.authenticate(r, hr, body, stsService); err != nil {
		return nil, err
	}
	switch {
	case version != stsVersion || hr.Method != http.MethodPost:
	case action == "GetCallerIdentity":
		return k.getCallerIdentity(r), nil
	case action == "AssumeRole":
		return k.assumeRole(r, form)
	case slices.Contains(unsupportedSTS, action):
		return nil, faultf(codeUnsupportedOperation, "localkms does not support the action %s.", action)
	}
	return nil, faultf(codeUnknownOperation, "Could not find operation %s for version %s", action, version)
}

type responseMetadata struct {
	RequestID string `xml:"ResponseMetadata>RequestId"`
}

type getCallerIdentityOutput struct {
	XMLName xml.Name `xml:"https://sts.amazonaws.com/doc/2011-06-15/ GetCallerIdentityResponse"`
	Arn     string   `xml:"GetCallerIdentityResult>Arn"`
	UserID  string   `xml:"GetCallerIdentityResult>UserId"`
	Account string   `xml:"GetCallerIdentityResult>Account"`
	responseMetadata
}

// getCallerIdentity needs no permission, and no policy denies it (AWS STS API
// Reference, GetCallerIdentity).
func (k *KMS) getCallerIdentity(r *request) *getCallerIdentityOutput {
	return &getCallerIdentityOutput{
		Arn: r.caller.arn, UserID: r.caller.userID, Account: r.caller.account,
		responseMetadata: responseMetadata{r.call.RequestID},
	}
}

// assumeRoleInput is a form, read.
type assumeRoleInput struct {
	roleArn, sessionName, externalID, policy, duration *string
}

func newAssumeRoleInput(form url.Values) (*assumeRoleInput, error) {
	get := func(name string) *string {
		if !form.Has(name) {
			return nil
		}
		value := form.Get(name)
		return &value
	}
	for name := range form {
		member, _, _ := strings.Cut(name, ".")
		if slices.Contains(unsupportedParameters, member) {
			return nil, faultf(codeUnsupportedOperation, "localkms does not support the parameter %s.", member)
		}
	}
	return &assumeRoleInput{
		get("RoleArn"), get("RoleSessionName"), get("ExternalId"), get("Policy"), get("DurationSeconds"),
	}, nil
}

func (in *assumeRoleInput) validate(v *validation) {
	v.required(in.roleArn != nil, "roleArn")
	v.between(in.roleArn, "roleArn", minRoleArn, maxRoleArn)
	v.required(in.sessionName != nil, "roleSessionName")
	v.between(in.sessionName, "roleSessionName", minSessionName, maxSessionName)
	v.pattern(in.sessionName, "roleSessionName", sessionNameMatcher, sessionNamePattern)
	v.between(in.externalID, "externalId", minExternalID, maxExternalID)
	v.pattern(in.externalID, "externalId", externalIDMatcher, externalIDPattern)
	v.text(in.policy, "policy", maxSessionPolicy)
	if in.duration != nil {
		seconds, err := strconv.Atoi(*in.duration)
		v.rule(err == nil, "DurationSeconds must be a number.")
		if err == nil {
			v.number(&seconds, "durationSeconds", minSessionSeconds, maxSessionSeconds)
		}
	}
	v.rule(in.roleArn == nil || roleArnMatcher.MatchString(*in.roleArn), text(in.roleArn)+" is invalid")
}

// lasts returns how long a session is to be.
func (in *assumeRoleInput) lasts() time.Duration {
	seconds, err := strconv.Atoi(text(in.duration))
	if err != nil {
		return defaultSession
	}
	return time.Duration(seconds) * time.Second
}

type assumeRoleOutput struct {
	XMLName         xml.Name `xml:"https://sts.amazonaws.com/doc/2011-06-15/ AssumeRoleResponse"`
	AssumedRoleID   string   `xml:"AssumeRoleResult>AssumedRoleUser>AssumedRoleId"`
	AssumedRoleArn  string   `xml:"AssumeRoleResult>AssumedRoleUser>Arn"`
	AccessKeyID     string   `xml:"AssumeRoleResult>Credentials>AccessKeyId"`
	SecretAccessKey string   `xml:"AssumeRoleResult>Credentials>SecretAccessKey"`
	SessionToken    string   `xml:"AssumeRoleResult>Credentials>SessionToken"`
	Expiration      string   `xml:"AssumeRoleResult>Credentials>Expiration"`
	PackedSize      int      `xml:"AssumeRoleResult>PackedPolicySize,omitempty"` // percent of what a policy may have
	TokenSize       int      `xml:"AssumeRoleResult>SessionTokenSize"`           // bytes
	responseMetadata
}

func (k *KMS) assumeRole(r *request, form url.Values) (*assumeRoleOutput, error) {
	in, err := newAssumeRoleInput(form)
	if err != nil {
		return nil, err
	}
	var v validation
	in.validate(&v)
	if err := v.err(); err != nil {
		return nil, err
	}
	if in.policy != nil {
		if _, err := parsePolicy(sessionPolicy, "", *in.policy); err != nil {
			return nil, err
		}
	}
	of, err := k.authorizeRole(r, in)
	if err != nil {
		return nil, err
	}
	expires := r.now.Add(in.lasts()).UTC().Truncate(time.Second)
	made, err := k.sessions.issue(of, *in.sessionName, text(in.policy), r.now, expires)
	if err != nil {
		return nil, err
	}
	return &assumeRoleOutput{
		AssumedRoleID: made.identity.userID, AssumedRoleArn: made.identity.arn,
		AccessKeyID: made.accessKeyID, SecretAccessKey: made.secret, SessionToken: made.token,
		Expiration:       expires.Format(time.RFC3339),
		PackedSize:       (len(text(in.policy))*100 + maxSessionPolicy - 1) / maxSessionPolicy,
		TokenSize:        len(made.token),
		responseMetadata: responseMetadata{r.call.RequestID},
	}, nil
}

// authorizeRole finds the role that may be assumed. One that does not exist is
// refused as one that may not.
func (k *KMS) authorizeRole(r *request, in *assumeRoleInput) (*role, error) {
	if r.caller.isRoot() { // AWS STS API Reference, AssumeRole
		return nil, fault(codeAccessDenied, "Roles may not be assumed by root accounts.")
	}
	denied := faultf(codeAccessDenied, "User: %s is not authorized to perform: sts:AssumeRole on resource: %s", r.caller.arn, *in.roleArn)
	of, ok := k.sessions.roles[*in.roleArn]
	if !ok {
		return nil, denied
	}
	a := access{operation: "AssumeRole", also: []attribute{attributeOf("sts:RoleSessionName", *in.sessionName)}}
	if in.externalID != nil {
		a.also = append(a.also, attributeOf("sts:ExternalId", *in.externalID))
	}
	q := &query{kms: k, r: r, action: "sts:assumerole", resource: of.arn, owner: of.account, access: &a}
	v, o := q.decide(of.trust)
	k.explain(q, conclusion{verdict: v, opinions: o, resource: of.trust})
	if !v.allowed {
		return nil, denied
	}
	switch {
	case r.caller.session != nil && in.lasts() > maxChainedSession:
		return nil, fault(codeValidation, "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining.")
	case in.lasts() > of.most:
		return nil, fault(codeValidation, "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.")
	}
	return of, nil
}

// stsError is an error of the AWS Query protocol.
type stsError struct {
	XMLName   xml.Name `xml:"ErrorResponse"`
	Space     string   `xml:"xmlns,attr"`
	Type      string   `xml:"Error>Type"`
	Code      string   `xml:"Error>Code"`
	Message   string   `xml:"Error>Message"`
	RequestID string   `xml:"RequestId"`
}

// stsRefusal is an error as STS answers it.
type stsRefusal struct {
	status               int
	party, code, message string
}

// stsFault renames an error: STS has other codes than KMS for the same thing, and
// statuses that say more (AWS STS API Reference, Common Errors).
func stsFault(f *apiError) stsRefusal {
	refusal := stsRefusal{http.StatusBadRequest, "Sender", strings.TrimSuffix(f.code, "Exception"), f.message}
	switch f.code {
	case codeAccessDenied:
		refusal.status = http.StatusForbidden
	case codeExpiredToken:
		refusal.status = http.StatusForbidden
	case codeMissingAuthentication:
		refusal.status, refusal.message = http.StatusForbidden, "Request is missing Authentication Token"
	case codeInvalidSignature:
		refusal.status, refusal.code = http.StatusForbidden, "SignatureDoesNotMatch"
	case codeUnrecognizedClient:
		refusal.status, refusal.code = http.StatusForbidden, "InvalidClientTokenId"
	case codeUnknownOperation:
		refusal.code = "InvalidAction"
	case codeValidation:
		refusal.code = "ValidationError"
	case codeSerialization:
		refusal.code = "MalformedInput"
	case codeInternal:
		refusal = stsRefusal{http.StatusInternalServerError, "Receiver", "InternalFailure", f.message}
	}
	return refusal
}
