// Package scheduler runs jobs at intervals, a limited number of them at a time.
package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log"
	"sync"
	"time"
)

// ErrDuplicate is returned when two jobs have the same name.
var ErrDuplicate = errors.New("scheduler: duplicate job")

// Job is what is done again and again.
type Job struct {
	Name    string
	Every   time.Duration
	Timeout time.Duration
	Run     func(ctx context.Context) error
}

// Scheduler owns the jobs. The zero value is not usable; call New.
type Scheduler struct {
	mu     sync.Mutex
	jobs   map[string]Job
	slots  chan struct{}
	logger *log.Logger
}

// New returns a scheduler that runs at most limit jobs at once.
func New(limit int, logger *log.Logger) *Scheduler {
	if limit < 1 {
		limit = 1
	}
	return &Scheduler{
		jobs:   make(map[string]Job),
		slots:  make(chan struct{}, limit),
		logger: logger,
	}
}

// Add registers a job. It has to be called before Run.
func (s *Scheduler) Add(job Job) error {
	if job.Every <= 0 || job.Run == nil {
		return fmt.Errorf("scheduler: job %q needs an interval and a function", job.Name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, exists := s.jobs[job.Name]; exists {
		return fmt.Errorf("%w: %s", ErrDuplicate, job.Name)
	}
	s.jobs[job.Name] = job
	return nil
}

// Run starts all jobs and blocks until ctx is done and every job has returned.
func (s *Scheduler) Run(ctx context.Context) {
	s.mu.Lock()
	var group sync.WaitGroup
	for _, job := range s.jobs {
		group.Add(1)
		go func(job Job) {
			defer group.Done()
			s.loop(ctx, job)
		}(job)
	}
	s.mu.Unlock()
	group.Wait()
}

func (s *Scheduler) loop(ctx context.Context, job Job) {
	ticker := time.NewTicker(job.Every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			s.runOnce(ctx, job)
		}
	}
}

func (s *Scheduler) runOnce(ctx context.Context, job Job) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return
	}
	if job.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, job.Timeout)
		defer cancel()
	}
	start := time.Now()
	if err := job.Run(ctx); err != nil {
		s.logger.Printf("job %s failed after %v: %v", job.Name, time.Since(start), err)
	}
}
