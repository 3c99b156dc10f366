package grpcapi

import (
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/keybroker/keybroker/internal/broker"
	"github.com/keybroker/keybroker/internal/rotation"
	keybrokerv1 "github.com/keybroker/keybroker/proto/keybroker/v1"
)

var jobKinds = map[rotation.Kind]keybrokerv1.ReencryptionJob_Kind{
	rotation.KindKeyChange:   keybrokerv1.ReencryptionJob_KIND_KEY_CHANGE,
	rotation.KindKeyMaterial: keybrokerv1.ReencryptionJob_KIND_KEY_MATERIAL,
	rotation.KindVerify:      keybrokerv1.ReencryptionJob_KIND_VERIFY,
}

var jobPriorities = map[rotation.Priority]keybrokerv1.ReencryptionJob_Priority{
	rotation.Normal: keybrokerv1.ReencryptionJob_PRIORITY_NORMAL,
	rotation.High:   keybrokerv1.ReencryptionJob_PRIORITY_HIGH,
}

// priorityOf is "" for what a request leaves out.
func priorityOf(m keybrokerv1.ReencryptionJob_Priority) rotation.Priority {
	switch m {
	case keybrokerv1.ReencryptionJob_PRIORITY_NORMAL:
		return rotation.Normal
	case keybrokerv1.ReencryptionJob_PRIORITY_HIGH:
		return rotation.High
	}
	return ""
}

var jobPhases = map[rotation.Phase]keybrokerv1.ReencryptionJob_Phase{
	rotation.Preparing:    keybrokerv1.ReencryptionJob_PHASE_PREPARING,
	rotation.Reencrypting: keybrokerv1.ReencryptionJob_PHASE_REENCRYPTING,
	rotation.Draining:     keybrokerv1.ReencryptionJob_PHASE_DRAINING,
	rotation.Verifying:    keybrokerv1.ReencryptionJob_PHASE_VERIFYING,
	rotation.Retiring:     keybrokerv1.ReencryptionJob_PHASE_RETIRING,
}

var jobStates = map[rotation.State]keybrokerv1.ReencryptionJob_State{
	rotation.Running:    keybrokerv1.ReencryptionJob_STATE_RUNNING,
	rotation.Paused:     keybrokerv1.ReencryptionJob_STATE_PAUSED,
	rotation.Blocked:    keybrokerv1.ReencryptionJob_STATE_BLOCKED,
	rotation.Succeeded:  keybrokerv1.ReencryptionJob_STATE_SUCCEEDED,
	rotation.Failed:     keybrokerv1.ReencryptionJob_STATE_FAILED,
	rotation.Cancelled:  keybrokerv1.ReencryptionJob_STATE_CANCELLED,
	rotation.Superseded: keybrokerv1.ReencryptionJob_STATE_SUPERSEDED,
}

var blockSides = map[rotation.Side]keybrokerv1.ReencryptionJob_Block_Side{
	rotation.From: keybrokerv1.ReencryptionJob_Block_SIDE_FROM,
	rotation.To:   keybrokerv1.ReencryptionJob_Block_SIDE_TO,
}

var blockerKinds = map[rotation.BlockerKind]keybrokerv1.KeyRetirement_Blocker_Kind{
	rotation.BlockRows:          keybrokerv1.KeyRetirement_Blocker_KIND_ROWS,
	rotation.BlockSelfInventory: keybrokerv1.KeyRetirement_Blocker_KIND_SELF_INVENTORY,
	rotation.BlockGrants:        keybrokerv1.KeyRetirement_Blocker_KIND_GRANTS,
	rotation.BlockIntents:       keybrokerv1.KeyRetirement_Blocker_KIND_GRANT_INTENTS,
	rotation.BlockDomain:        keybrokerv1.KeyRetirement_Blocker_KIND_DOMAIN,
	rotation.BlockJob:           keybrokerv1.KeyRetirement_Blocker_KIND_JOB,
	rotation.BlockImportSource:  keybrokerv1.KeyRetirement_Blocker_KIND_IMPORT_SOURCE,
	rotation.BlockBackup:        keybrokerv1.KeyRetirement_Blocker_KIND_BACKUP_RETENTION,
	rotation.BlockAbandoned:     keybrokerv1.KeyRetirement_Blocker_KIND_ABANDONED_ROWS,
}

// jobMessage converts a job.
func jobMessage(j rotation.JobView) *keybrokerv1.ReencryptionJob {
	m := &keybrokerv1.ReencryptionJob{
		Name:          broker.JobName(j.DomainID, j.ID),
		Kind:          jobKinds[j.Kind],
		Phase:         jobPhases[j.Phase],
		State:         jobStates[j.State],
		SourceKmsKeys: sourceKeys(j.Sources),
		TargetKmsKey:  string(j.TargetKey),
		Reason:        j.Reason,
		Progress: &keybrokerv1.ReencryptionJob_Progress{
			TotalRows:           j.TotalRows,
			TotalRowsEstimated:  j.Estimated,
			DoneRows:            j.Progress.Done,
			FailedRows:          j.Progress.Failed,
			RelabelledRows:      j.Progress.Relabelled,
			RowsPerSecond:       j.Pace.Rows,
			EstimatedFinishTime: timestamp(j.FinishTime),
		},
		CreateTime: timestamp(j.CreateTime),
		SwitchTime: timestamp(j.SwitchTime),
		EndTime:    timestamp(j.EndTime),
		UpdateTime: timestamp(j.UpdateTime),
		Etag:       j.Etag(),
		Priority:   jobPriorities[j.Priority],
		Pace:       paceMessage(j),
	}
	if m.TargetKmsKey == "" {
		m.TargetKmsKey = j.TargetGiven
	}
	switch j.State {
	case rotation.Blocked:
		m.Block = &keybrokerv1.ReencryptionJob_Block{Reason: string(j.Block.Reason), Side: blockSides[j.Block.Side],
			Message: j.Block.Message, Since: timestamp(j.Block.Since), NextProbeTime: timestamp(j.Block.NextProbe)}
	case rotation.Failed:
		m.Error = &keybrokerv1.Status{Code: int32(jobCode(j.FailReason)), Message: j.FailMessage, Reason: string(j.FailReason)}
	case rotation.Running:
		if j.WaitMessage != "" || !j.WaitUntil.IsZero() {
			m.Waiting = &keybrokerv1.ReencryptionJob_Waiting{Message: j.WaitMessage, Until: timestamp(j.WaitUntil)}
		}
	}
	return m
}

// paceMessage is nil where rows are not moving.
func paceMessage(j rotation.JobView) *keybrokerv1.ReencryptionJob_Pace {
	if j.Pace.Time.IsZero() {
		return nil
	}
	m := &keybrokerv1.ReencryptionJob_Pace{CallsPerSecond: j.Pace.Calls, BudgetCallsPerSecond: j.Budget}
	if j.Pace.Calls > 0 {
		m.ThrottledShare = j.Pace.Throttled / j.Pace.Calls
	}
	return m
}

// sourceKeys gives each key once, newest first; the engine gives them by epoch
// ascending, and a domain may come back to a key.
func sourceKeys(keys []broker.KeyARN) []string {
	var names []string
	for _, k := range slices.Backward(keys) {
		if k != "" && !slices.Contains(names, string(k)) {
			names = append(names, string(k))
		}
	}
	return names
}

// jobCode is the code of a failed job's error, which is never OK.
func jobCode(r broker.Reason) codes.Code {
	return codeOf(&broker.Error{Kind: broker.ErrPrecondition, Reason: r})
}

// failureMessage converts a row that KMS refused in a job.
func failureMessage(d broker.DomainID, f rotation.Failure) *keybrokerv1.ReencryptionFailure {
	m := &keybrokerv1.ReencryptionFailure{
		Name:         broker.FailureName(d, f.Job, f.DataKey),
		DataKey:      broker.DataKeyName(d, f.DataKey),
		Class:        keybrokerv1.ReencryptionFailure_CLASS_OTHER,
		Message:      f.Message,
		FailTime:     timestamp(f.Time),
		Acknowledged: f.Acknowledged,
	}
	switch f.Class {
	case broker.KMSIncorrectKey:
		m.Class = keybrokerv1.ReencryptionFailure_CLASS_INCORRECT_KEY
	case broker.KMSInvalidCiphertext:
		m.Class = keybrokerv1.ReencryptionFailure_CLASS_INVALID_CIPHERTEXT
	}
	return m
}

// planMessage converts what a key change would find.
func planMessage(p rotation.KeyChangePlan) *keybrokerv1.PlanKeyChangeResponse {
	m := &keybrokerv1.PlanKeyChangeResponse{TargetKmsKey: string(p.TargetKey), Grants: int64(p.Grants), SelfInventoryGrants: int64(p.SelfGrants)}
	for _, source := range p.Sources {
		m.Sources = append(m.Sources, &keybrokerv1.PlanKeyChangeResponse_Source{KmsKey: string(source.Key), Rows: source.Rows, AtLeast: source.AtLeast})
	}
	if p.Forecast != nil {
		m.Forecast = &keybrokerv1.PlanKeyChangeResponse_Forecast{
			Rows: p.Forecast.Rows, CallsPerSecond: p.Forecast.CallsPerSecond,
			ReencryptionDuration: durationpb.New(p.Forecast.Moving), TotalDuration: durationpb.New(p.Forecast.Total)}
	}
	for _, problem := range p.Problems {
		m.Problems = append(m.Problems, &keybrokerv1.PlanKeyChangeResponse_Problem{
			Reason: string(problem.Reason), Side: blockSides[problem.Side], Message: problem.Message})
	}
	return m
}

// reportMessage converts a retirement report.
func reportMessage(r rotation.Report) *keybrokerv1.RetirementReport {
	m := &keybrokerv1.RetirementReport{
		Name:          broker.JobName(r.Domain, r.Job) + "/retirementReport",
		EvaluateTime:  timestamp(r.EvaluateTime),
		ReportSha256:  r.SHA256,
		CanonicalJson: r.Canonical,
	}
	for _, k := range r.Keys {
		m.Entries = append(m.Entries, keyRetirementMessage(k))
	}
	return m
}

func keyRetirementMessage(k rotation.KeyRetirement) *keybrokerv1.KeyRetirement {
	m := &keybrokerv1.KeyRetirement{
		KmsKey:           string(k.Key),
		SafeToRetire:     k.Safe,
		SafeAfter:        timestamp(k.SafeAfter),
		GrantsRetired:    k.GrantsRetired,
		ListedTime:       timestamp(k.ListTime),
		LastRowMovedTime: timestamp(k.LastMoveTime),
		Confirm:          k.Confirm,
	}
	for _, b := range k.Blockers {
		m.Blockers = append(m.Blockers, &keybrokerv1.KeyRetirement_Blocker{Kind: blockerKinds[b.Kind], Resource: b.Resource,
			Count: b.Count, AtLeast: b.AtLeast, Message: b.Message, Until: timestamp(b.Until)})
	}
	for _, c := range k.Moved {
		m.RowsMoved = append(m.RowsMoved, &keybrokerv1.KeyRetirement_RowsMoved{SourceKeyMaterialId: c.SourceMaterial,
			DestinationKeyMaterialId: c.NewMaterial, Rows: c.Rows})
	}
	m.SelfInventories = inventoryMessages(k.Inventories)
	return m
}
