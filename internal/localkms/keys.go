package localkms

import (
	"regexp"
	"strings"
	"sync/atomic"
	"time"
)

// maxRegion bounds a region's name, which a blob header holds behind one byte.
const maxRegion = 64

// keyRef names a key in this KMS. Every region and account has keys of its own.
type keyRef struct {
	Account string `json:"account"` // 12 digits
	Region  string `json:"region"`
	ID      string `json:"id"` // a UUID
}

func (r keyRef) arn() string {
	return "arn:aws:kms:" + r.Region + ":" + r.Account + ":key/" + r.ID
}

// aliasRef names an alias. Its name begins with "alias/".
type aliasRef struct {
	Account string `json:"account"`
	Region  string `json:"region"`
	Name    string `json:"name"`
}

func (r aliasRef) arn() string {
	return "arn:aws:kms:" + r.Region + ":" + r.Account + ":" + r.Name
}

// alias is never altered once it stands in the state.
type alias struct {
	ref     aliasRef
	target  keyRef
	created time.Time
	updated time.Time // when it got another target than its first; zero when it never did
}

// lastUpdated returns when the alias got its target.
func (a *alias) lastUpdated() time.Time {
	if a.updated.IsZero() {
		return a.created
	}
	return a.updated
}

// key is a KMS key. Everything but the current settings, the grants and the last use is fixed
// at creation; the first two of those are guarded by KMS.mu.
type key struct {
	ref keyRef
	kind
	arn     string
	created time.Time

	settings *settings
	grants   *grantSet
	lastUse  atomic.Pointer[use] // nil if there was none
}

// settings are what can change about a key. A settings value is never altered:
// a change makes a new one, so a request may work on one without any lock.
type settings struct {
	enabled     bool
	deletion    time.Time // when the key ends; zero when that is not planned
	description string
	tags        []tag // by key
	policy      *policy
	rotation    rotationPlan
	materials   []*material // oldest first; the last one encrypts
}

// pending reports whether the key is to be deleted.
func (s *settings) pending() bool { return !s.deletion.IsZero() }

// gone reports whether the day of the key's deletion has come.
func (s *settings) gone(now time.Time) bool { return s.pending() && !now.Before(s.deletion) }

func (s *settings) current() *material { return s.materials[len(s.materials)-1] }

func (s *settings) material(id string) *material {
	for _, m := range s.materials {
		if m.id == id {
			return m
		}
	}
	return nil
}

// resolved is a key as one request found it.
type resolved struct {
	*key
	*settings
	requestAlias string // the name of the alias that the request used, if it did
}

// usable reports whether the key may encrypt, decrypt and get new grants (AWS
// KMS Developer Guide, "Key states of AWS KMS keys").
func (k resolved) usable() error {
	if err := k.notPending(); err != nil {
		return err
	}
	if !k.enabled {
		return faultf(codeDisabled, "%s is disabled.", k.arn)
	}
	return nil
}

// notPending refuses a key that is to be deleted. AWS documents either of two
// codes for its use, and was recorded with this one.
func (k resolved) notPending() error {
	if k.pending() {
		return faultf(codeInvalidState, "%s is pending deletion.", k.arn)
	}
	return nil
}

// idForms says which identifiers an operation takes.
type idForms bool

const (
	keyForms      idForms = false // key id, key ARN
	keyAliasForms idForms = true  // also alias name, alias ARN
)

var keyIDPattern = regexp.MustCompile(
	`^(?:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|mrk-[0-9a-f]{32})$`)

// find looks a key up by an identifier. A bare id or alias name means the
// caller's own account; the region is always that of the request.
func (k *KMS) find(r *request, id string, forms idForms) (resolved, error) {
	found, err := k.rotated(r, func(s *state) (resolved, error) {
		ref, err := s.locate(r, id, forms)
		if err != nil {
			return resolved{}, err
		}
		return s.alive(ref, r.now)
	})
	if i := strings.Index(id, "alias/"); i == 0 || (i > 0 && id[i-1] == ':') {
		found.requestAlias = id[i:]
	}
	return found, err
}

// aliasNames returns the names of a key's aliases.
func (k *KMS) aliasNames(ref keyRef) []string {
	k.mu.RLock()
	defer k.mu.RUnlock()
	var names []string
	for _, a := range k.state.aliases {
		if a.target == ref {
			names = append(names, a.ref.Name)
		}
	}
	return names
}

// lookup finds a key by its reference.
func (k *KMS) lookup(r *request, ref keyRef) (resolved, error) {
	return k.rotated(r, func(s *state) (resolved, error) { return s.alive(ref, r.now) })
}

// rotated reads a key, and again after its automatic rotation if that was due.
func (k *KMS) rotated(r *request, read func(*state) (resolved, error)) (resolved, error) {
	key, err := k.read(read)
	if err != nil || !key.rotationDue(r.now) {
		return key, err
	}
	if err := k.rotateDue(r, key.ref); err != nil {
		return resolved{}, err
	}
	return k.read(read)
}

func (k *KMS) read(from func(*state) (resolved, error)) (resolved, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return from(k.state)
}

// owned finds a key for an operation that only the key's own account may do, and
// checks that the caller may.
func (k *KMS) owned(r *request, id, operation string, also ...attribute) (resolved, error) {
	key, err := k.find(r, id, keyForms)
	if err != nil {
		return resolved{}, err
	}
	r.call.KeyARN = key.arn
	return key, k.authorizeOwner(r, key, operation, also...)
}

// alive is get for requests. To them a key is gone at its deletion date, though
// it leaves the state only with the next change.
func (s *state) alive(ref keyRef, now time.Time) (resolved, error) {
	found, err := s.get(ref)
	if err == nil && found.gone(now) {
		return resolved{}, errNoSuchKey(ref.arn())
	}
	return found, err
}

func (s *state) get(ref keyRef) (resolved, error) {
	found, ok := s.keys[ref]
	if !ok {
		return resolved{}, errNoSuchKey(ref.arn())
	}
	return resolved{key: found, settings: found.settings}, nil
}

func (s *state) locate(r *request, id string, forms idForms) (keyRef, error) {
	account, name := r.caller.account, id
	if strings.HasPrefix(id, "arn:") {
		region, owner, resource, ok := splitKMSArn(id)
		if !ok {
			return keyRef{}, faultf(codeInvalidArn, "Invalid arn %s", id)
		}
		if region != r.region {
			return keyRef{}, faultf(codeNotFound, "Invalid arn %s", region)
		}
		account = owner
		if bare, isKey := strings.CutPrefix(resource, "key/"); isKey {
			name = bare
		} else if strings.HasPrefix(resource, "alias/") {
			name = resource
		} else {
			return keyRef{}, faultf(codeInvalidArn, "Invalid arn %s", id)
		}
	}
	if strings.HasPrefix(name, "alias/") {
		if forms != keyAliasForms {
			return keyRef{}, errInvalidKeyID(id)
		}
		ref := aliasRef{account, r.region, name}
		if found := s.aliases[ref]; found != nil {
			if _, err := s.alive(found.target, r.now); err == nil {
				return found.target, nil
			}
		}
		return keyRef{}, errNoSuchAlias(ref)
	}
	if !keyIDPattern.MatchString(name) {
		return keyRef{}, errInvalidKeyID(id)
	}
	return keyRef{account, r.region, name}, nil
}

// splitKMSArn takes arn:aws:kms:region:account:resource apart.
func splitKMSArn(arn string) (region, account, resource string, ok bool) {
	part := strings.SplitN(arn, ":", 6)
	if len(part) != 6 || part[1] != "aws" || part[2] != "kms" || part[3] == "" || !accountPattern.MatchString(part[4]) {
		return "", "", "", false
	}
	return part[3], part[4], part[5], true
}
