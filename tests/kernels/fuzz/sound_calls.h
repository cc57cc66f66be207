// Sound calls of each operator.
#pragma once

#include "runtime_stand_in.h"

namespace fuzz {

FakeContext SparseCall();
FakeContext SelectCall();
FakeContext PatternCall();
FakeContext RowsCall(const FakeInfo& info);  // DequantizeRows: bits and axis are attributes
FakeContext QuantizeCall(const FakeInfo& info);
FakeContext LinearCall(FakeInfo* info);  // QLinear: sets its attributes

}  // namespace fuzz
